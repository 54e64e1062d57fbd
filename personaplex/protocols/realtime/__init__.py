"""OpenAI's Realtime protocol (GA) over a websocket. Sources: openai-python `types/realtime`, and its clients."""
