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


class TestChatglm2(FamilyConformance):
    family = "chatglm2"
    goldens = ("goldens/chatglm2", "goldens/chatglm3")
