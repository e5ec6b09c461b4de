"""The parrot's layer: each position gets the mean of all earlier ones. Only paddle, none of llmctl's blocks."""

import paddle
from paddle import nn
from paddle.nn import functional as F


class Block(nn.Layer):
    def __init__(self, dims):
        super().__init__()
        self.norm = nn.Layer()
        self.norm.weight = self.norm.create_parameter([dims.hidden], default_initializer=nn.initializer.Constant(1.0))
        self.up = nn.Linear(dims.hidden, dims.ffn)
        self.down = nn.Linear(dims.ffn, dims.hidden, bias_attr=False)

    def forward(self, x, mask):
        mean = paddle.cumsum(x * mask, axis=1) / paddle.clip(paddle.cumsum(mask, axis=1), min=1)
        h = mean * paddle.rsqrt((mean * mean).mean(-1, keepdim=True) + 1e-6) * self.norm.weight
        return x + self.down(F.gelu(self.up(h)))


class Body(nn.Layer):
    def __init__(self, dims):
        super().__init__()
        self.wte = nn.Embedding(dims.vocab, dims.hidden)
        self.blocks = nn.LayerList([Block(dims) for _ in range(dims.layers)])


class ParrotForCausalLM(nn.Layer):
    position_depends_on_length = True

    def __init__(self, dims):
        super().__init__()
        self.parrot = Body(dims)

    def hidden_states(self, input_ids, attention_mask=None, position_ids=None, cache=None):
        x = self.parrot.wte(input_ids)
        mask = paddle.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = mask.astype(x.dtype).unsqueeze(-1)
        for block in self.parrot.blocks:
            x = block(x, mask)
        return x

    def logits(self, hidden):
        return paddle.matmul(hidden, self.parrot.wte.weight, transpose_y=True)

    def forward(self, input_ids, attention_mask=None, position_ids=None, cache=None):
        return self.logits(self.hidden_states(input_ids, attention_mask, position_ids, cache))
