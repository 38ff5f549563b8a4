from sites.idefics3 import ATTENTION, SITES

__all__ = ["ATTENTION", "MODEL_TYPE", "SITES"]

MODEL_TYPE = "smolvlm"
