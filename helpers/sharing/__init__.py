"""After notebook 04: use a trained model outside this course, show it, and give it away.

- `export`: a run's model as a GGUF file, for llama.cpp and Ollama, or in float16, with the measured loss in quality
- `gguf_file`: writes one GGUF file
- `demo`: a page on this machine, on which base and tuned model continue a prompt
- `demo_page`: the page itself, also as one file that runs the model in a browser
- `upload`: shows what would be published on the Hugging Face Hub, and publishes it
- `commands`: `export`, `demo` and `share` of the command line
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
