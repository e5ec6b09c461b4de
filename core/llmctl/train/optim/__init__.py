"""The optimizer: AdamW, learning-rate schedules, master weights, loss scaling, sharding over ranks (ZeRO)."""
