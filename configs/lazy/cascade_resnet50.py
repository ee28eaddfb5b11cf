from .common import cascade, resnet

model, dataloader, optimizer, lr_multiplier, train = cascade(resnet(50))
