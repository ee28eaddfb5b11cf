from .common import faster, resnest

model, dataloader, optimizer, lr_multiplier, train = faster(resnest(101), masks=True)
