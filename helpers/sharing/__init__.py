"""After notebook 04: use a trained model outside this course, show it, and publish it.

- `export`: a run's model as a GGUF file, for llama.cpp and Ollama, or in float16, with the measured loss in quality
- `gguf_file`: writes and reads a GGUF file
- `demo`: a server on this machine for a page on which the base and the tuned model continue a prompt
- `demo_page`: the page itself, also as a single file that runs the model in a browser
- `upload`: shows what would be published on the Hugging Face Hub, and publishes it
- `commands`: the `export`, `demo` and `share` commands
"""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "export": "Export export_model",
        "gguf_file": "write_gguf",
        "demo": "DemoServer",
        "demo_page": "write_static_page",
        "upload": "Upload plan_upload publish",
    },
)
