"""Commands that carry a run into use: export, serve."""

from pathlib import Path


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

    Nothing is written unless it does so on real images.

    Args:
        run: the run folder, or an ensemble.
        out: the .onnx file to write.
        views: center (one view, a run's default), report (every test size, two crops; an ensemble's default), or names
            such as center-224; center-224-noflip is the view without its flipped twin.
        crop: take upright images of any size and cut the views in the graph, one shape at a time.
        int8: convolutions in 8 bits, calibrated on training images; what that changes is measured and said.
        data: where the run's data lies now (where it lay when the run began).
        images: files, folders or quoted patterns to try the file on, instead of the run's val images; may be repeated.
        num_images: at most so many (256).
    """
    from fewsight.apps.export import require_export
    from fewsight.terminal import make_console

    require_export()
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
            data=data,
            images=images,
            num_images=num_images,
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

    Ctrl-C or SIGTERM ends it when what was asked is answered.

    Args:
        run: the run folder, or an ensemble.
        host: the address to listen on; any but this machine's own needs a token (127.0.0.1).
        port: the port to listen on; 0 takes one that is free and says which (8000).
        token: what requests have to bring; the environment's FEWSIGHT_TOKEN keeps it from the list of processes.
        views: center (one view, a run's default), report (every test size, two crops; an ensemble's default), or names
            such as center-224,random-320.
        max_mb: MiB that a request may hold (64).
        max_megapixels: of an image, millions (50).
        max_files: that a request may hold (64).
        max_queue: images that may wait (256).
        timeout: seconds for an upload, and then for its answer (30).
        batch: images that go through the model together, at most (32).
    """
    from fewsight.apps.serve import require_serve

    require_serve()
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

    def say(address: str) -> None:
        print(f"{address} serves {run}; Ctrl-C ends it", flush=True)

    serve_run(run, host=host, port=port, token=token, views=views, limits=limits, say=say)
    return 0
