"""HTTP: the OpenAI-compatible API, admin routes and the web page."""
