from sites import llava

MODEL_TYPE = "llava_onevision"
SITES = llava.SITES
ATTENTION = llava.ATTENTION
