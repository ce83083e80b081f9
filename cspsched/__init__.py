"""How far is an LLM server's scheduler from the best possible schedule?"""
