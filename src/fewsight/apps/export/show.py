"""The summary that `fewsight export` prints."""

from rich.console import Console

from fewsight.apps.export.write import Exported
from fewsight.terminal import printable, trained_on_note
from fewsight.wording import counted


def show_exported(console: Console, exported: Exported) -> None:
    """Print the comparison with `predict`, the effect of int8, and the file."""
    parity, loss = exported.parity, exported.int8_loss
    console.print(f"compared with predict on {counted(parity.num_images, 'image')} of {printable(parity.source)}:")
    console.print(
        f"  same most probable class {parity.num_same_top1:,} of {parity.num_images:,}; "
        f"largest difference of a probability {parity.largest:.1e}"
    )
    console.print(
        f"  per image, from its file: predict {parity.predict_ms:.1f} ms, onnxruntime {parity.onnxruntime_ms:.1f} ms"
        + (f", in int8 {loss.int8_ms:.1f} ms" if loss else "")
    )
    if loss is not None:
        console.print(f"  int8 keeps the most probable class of {loss.agreement}")
        if loss.float32 is not None and loss.int8 is not None:
            console.print(f"  top-1 {loss.float32} in float32, {loss.int8} in int8: {loss.gain}")
        if loss.num_trained_on:
            console.print(f"  {trained_on_note(loss.num_trained_on, parity.num_images)}")
    if exported.temperature is None:
        console.print("the probabilities are not calibrated: the run has no temperature for these views")
    else:
        console.print(f"temperature {exported.temperature:.2f}, in the graph")
    size, views = exported.num_bytes / 2**20, ", ".join(exported.views)
    console.print(f"wrote {printable(str(exported.path))}: {size:.1f} MiB, {views}")
