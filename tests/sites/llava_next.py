from sites import llava

MODEL_TYPE = "llava_next"
SITES = llava.SITES
ATTENTION = llava.ATTENTION
