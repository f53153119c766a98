"""The server of language models: the API that clients of OpenAI's speak, over ``arcweld.runtime.llm``."""
