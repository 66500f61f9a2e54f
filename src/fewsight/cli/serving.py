"""Commands that put a run to use: export, serve."""

from pathlib import Path

from fewsight.cli import early


def export(
    run: Path,
    /,
    *,
    out: Path,
    views: str | None = None,
    crop: bool = False,
    int8: bool = False,
    data: Path | None = None,
    images: tuple[str, ...] = (),
    num_images: int = 256,
) -> int:
    """Write a run or an ensemble as an ONNX file that gives the probabilities of predict without fewsight.

    The file is compared with predict on real images, and is not written if their probabilities differ.

    Args:
        run: the run folder, or an ensemble.
        out: the .onnx file to write.
        views: center (one view; a run's default), paper (every test size, two crops), or names such as center-224;
            center-224-noflip leaves out the mirrored view. An ensemble has its own default.
        crop: take upright images of any size, each batch of one shape, and cut the views inside the graph.
        int8: quantise convolutions to 8 bits, calibrated on training images; prints how predictions change.
        data: where the run's data is now (where it was when the run began).
        images: files, folders or quoted patterns to compare on, instead of the run's val images; may be repeated.
        num_images: how many images to compare on, at most (256).
    """
    from fewsight.apps.export import require_export
    from fewsight.terminal import make_console

    require_export()
    early.check_run(run)
    from fewsight.apps.export.images import CompareOn
    from fewsight.apps.export.show import show_exported
    from fewsight.apps.export.write import export_run

    console = make_console()
    show_exported(
        console,
        export_run(
            run,
            out,
            views=views,
            crop=crop,
            int8=int8,
            compare_on=CompareOn(images, data, num_images),
            say=console.print,
        ),
    )
    return 0


def serve(
    run: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    views: str | None = None,
    max_mb: int = 64,
    max_megapixels: int = 50,
    max_files: int = 64,
    max_queue: int = 256,
    timeout: float = 30.0,
    batch: int = 32,
) -> int:
    """Serve a run: a page to drop images on, and the API behind it; the answers are those of predict.

    Ctrl-C or SIGTERM ends it once every request is answered.

    Args:
        run: the run folder, or an ensemble.
        host: the address to listen on; one that other machines can reach needs a token (127.0.0.1).
        port: the port to listen on; 0 takes a free one and prints it (8000).
        token: the token that requests must carry; FEWSIGHT_TOKEN in the environment keeps it out of the process list.
        views: center (one view; a run's default), paper (every test size, two crops), or names such as
            center-224,random-320. An ensemble has its own default.
        max_mb: the largest request, in MiB (64).
        max_megapixels: the largest image, in millions of pixels (50).
        max_files: the most files in a request (64).
        max_queue: the most images that may wait (256).
        timeout: seconds for an upload, and then for its answer (30).
        batch: the most images that go through the model together (32).
    """
    from fewsight.apps.serve import require_serve

    require_serve()
    early.check_run(run)
    from fewsight.apps.serve.limits import Limits
    from fewsight.apps.serve.server import serve as serve_run

    limits = Limits(
        max_bytes=max_mb * 2**20,
        max_pixels=max_megapixels * 10**6,
        max_files=max_files,
        max_queue=max_queue,
        max_body_bytes=max(8 * max_mb, 64) * 2**20,
        timeout_s=timeout,
        batch_size=batch,
    )

    def say_started(url: str) -> None:
        print(f"{url} serves {run}; Ctrl-C ends it", flush=True)

    serve_run(run, host=host, port=port, token=token, views=views, limits=limits, say=say_started)
    return 0
