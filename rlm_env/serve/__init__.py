"""The RLM as an OpenAI-compatible model: text in, text out, a whole episode behind each completion."""
