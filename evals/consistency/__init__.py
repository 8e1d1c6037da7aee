"""The suite "consistency": do several seeds, or several methods, find the same latents?"""
