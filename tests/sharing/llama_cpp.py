"""llama.cpp, for the tests of exported models."""

import numpy as np
import pytest


class LlamaCpp:
    """A GGUF file, loaded in llama.cpp."""

    def __init__(self, path):
        pytest.importorskip("cyllama", reason="no llama.cpp: `pip install '.[test]'`, x86 Linux, Python below 3.14")
        from cyllama.llama import llama_cpp as api

        class Model(api.LlamaModel):
            # cyllama 0.2.18 uses this attribute, which its own model lacks
            n_vocab = property(lambda self: self.get_vocab().n_vocab)

        api.disable_logging()
        self.api, self.model = api, Model(str(path), verbose=False)
        self.vocab = self.model.get_vocab()

    def tokens(self, text):
        return self.vocab.tokenize(text, False, True)

    def logits(self, ids):
        """Return the logits (T, V) of the tokens that follow each of `ids`."""
        return self._decode(self._context(), ids, 0)

    def greedy(self, ids, n):
        """Return `n` tokens of greedy decoding after `ids`."""
        context, found = self._context(), []
        logits = self._decode(context, ids, 0)
        for _ in range(n):
            found.append(int(logits[-1].argmax()))
            logits = self._decode(context, found[-1:], len(ids) + len(found) - 1)
        return found

    def _context(self):
        parameters = self.api.LlamaContextParams()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = self.model.n_ctx_train
        parameters.n_threads = parameters.n_threads_batch = 1
        return self.api.LlamaContext(self.model, parameters, verbose=False)

    def _decode(self, context, ids, position):
        batch = self.api.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        batch.set_batch(list(ids), position, True)
        assert context.decode(batch) == 0
        return np.array([context.get_logits_ith(i) for i in range(len(ids))])
