"""How tables and plots name what the results files name, and in which unit."""

from benchmarks.results import ratios

SIZES = {"tiny": "DeiT-Ti", "small": "DeiT-S", "base": "DeiT-B"}
ENGINES = {  # of train_step.py and input_pipeline.py
    "deit_tf": "deit-tf",
    "timm": "timm",
    "timm_compile": "timm, `torch.compile`",
    "keras_hub": "keras-hub, XLA",
}
BASE = "onnxruntime timm"  # what the speeds of inference.py are relative to
ANSWERS = {  # of inference.py
    BASE: "ONNX Runtime, timm's file",
    "onnxruntime ours portable": "ONNX Runtime, ours, `portable`",
    "onnxruntime ours cpu": "ONNX Runtime, ours, `cpu`",
    "onnxruntime ours int8": "ONNX Runtime, ours, `cpu`, int8",
    "openvino f32 timm": "OpenVINO, timm's file",
    "openvino f32 ours": "OpenVINO, ours",
    "openvino bf16 timm": "OpenVINO in bfloat16, timm's file",
    "openvino bf16 ours": "OpenVINO in bfloat16, ours",
    "savedmodel": "our SavedModel, in TensorFlow",
    "timm": "timm, eager",
    "timm_compile": "timm, `torch.compile`",
    "keras_hub": "keras-hub, XLA",
}
WAYS = {  # of cost.py
    "undistilled": "no teacher",
    "live": "teacher asked,\nor a bank filled",
    "bank": "bank read",
}
GIBIBYTE = 2**30


def case(row):
    """A row of train_step.py: what is trained, by whom, on how many images at once."""
    taught = "RegNetY-16GF teaches" if row["distillation"] == "hard" else "no teacher"
    return f"{SIZES[row['model']]}, {taught}, batch {row['batch']}"


def is_ours(name):
    """Whether an engine of inference.py runs what deit-tf exports."""
    return "ours" in name or name == "savedmodel"


def unit(row):
    """In which unit a row of inference.py is shown."""
    return "one image, ms" if row["batch"] == 1 else f"batch {row['batch']}, images/s"


def answers(row, name):
    """An engine's turns in the unit of its row."""
    seconds = row["engines"][name]["seconds"]
    return [1e3 * each if row["batch"] == 1 else row["batch"] / each for each in seconds]


def speeds(row, name):
    """Turn by turn, how many times as fast as BASE an engine is."""
    return ratios(row["engines"][BASE]["seconds"], row["engines"][name]["seconds"])


def memory(engine):
    """An engine's peak memory."""
    return f"{engine['peak_bytes'] / GIBIBYTE:.2f}"
