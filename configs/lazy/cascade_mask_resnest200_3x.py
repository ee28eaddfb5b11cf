from .common import cascade, resnest

model, dataloader, optimizer, lr_multiplier, train = cascade(resnest(200), masks=True, tricks=True)
