"""The tests that every family passes."""

from llmctl.testing import FamilyConformance


class TestChatglm(FamilyConformance):
    family = "chatglm"
    goldens = ("goldens/chatglm",)
    changes = {"bos": 90, "gmask": 91, "mask": 92}  # noqa: RUF012

    def input_ids(self, dims, rows, length):
        ids = super().input_ids(dims, rows, length) % 80 + 3
        ids[:, 3:5] = [dims.gmask, dims.bos]
        return ids

    def in_context(self, model, first, second):
        """Positions count from each text: the second is a document of its own that sees the first."""
        import paddle

        total = first.shape[1] + second.shape[1]
        places = paddle.concat([paddle.arange(part.shape[1]) for part in (first, second)]).expand([len(second), total])
        ends = paddle.full([len(second), total], total, "int64")
        hidden = model.hidden_states(paddle.concat([first, second], axis=1), None, places, None, ends)
        return model.logits(hidden)[:, first.shape[1] :]


class TestChatglm2(FamilyConformance):
    family = "chatglm2"
    goldens = ("goldens/chatglm2", "goldens/chatglm3")
