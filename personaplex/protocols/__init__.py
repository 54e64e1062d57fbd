"""Protocols that other people's programs speak: Moshi's websocket, OpenAI's Realtime API, Twilio's Media Streams."""
