"""`export`, `demo` and `share`, as commands of `python -m helpers`."""

from pathlib import Path

import click

from helpers.display import announce, printable


@click.command()
@click.argument("run")
@click.option("--to", default="gguf", show_default=True, metavar="FORMAT", help="gguf or safetensors-fp16.")
@click.option("--type", "gguf_type", default="f16", show_default=True, metavar="TYPE", help="For a GGUF: f16 or q8_0.")
def export(run: str, to: str, gguf_type: str) -> None:
    """Write RUN's model as GGUF for llama.cpp, or in float16. It also measures how much the perplexity rises."""
    announce(f"Writing the model of run {run} as {to}, and measuring its perplexity in this format ...")
    from helpers.sharing import export_model

    exported = export_model(run, to=to, gguf_type=gguf_type)
    click.echo(f"{exported}\nHow to use it: {exported.folder / 'README.md'}")


@click.command()
@click.argument("run")
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="0: any free port.")
@click.option(
    "--static",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Write a page that runs a small model in the browser, without a server.",
)
def demo(run: str, port: int, static: Path | None) -> None:
    """Show a page where RUN's base and tuned models continue text."""
    action = "Reading the models of run" if static is None else "Writing a page with the model of run"
    announce(f"{action} {run} ...")
    from helpers.sharing import DemoServer, write_static_page

    if static is not None:
        page = write_static_page(run, static)
        click.echo(f"{page}: {page.stat().st_size / 1e6:.1f} MB. Open it in a browser, or put it on any web host.")
        return
    server = DemoServer(run, port=port)
    click.echo(f"{printable(server.note)}\n{server.address}\nCtrl-C closes the page.")
    server.serve()
    click.echo("\nClosed.")


@click.command()
@click.argument("run")
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Publish it in a private repository.")
@click.option("--license", "licence", metavar="ID", help="Licence of your model, such as mit or cc0-1.0.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def share(run: str, repo_id: str, private: bool, licence: str | None, yes: bool) -> None:
    """Publish RUN on the Hugging Face Hub. It first shows what would be published, and asks."""
    announce(f"Gathering the files of run {run}, and asking the Hub ...")
    from helpers.sharing import plan_upload, publish

    upload = plan_upload(run, repo_id, private=private, licence=licence)
    click.echo(str(upload))
    if not yes and not click.confirm("Publish this?"):
        click.echo("Nothing was sent.")
        return
    announce("Publishing ...")
    click.echo(publish(upload))
