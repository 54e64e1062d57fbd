"""The page: Gradio's tabs, the WebRTC handler behind them, what is kept for visitors."""
