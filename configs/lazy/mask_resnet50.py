from .common import faster, resnet

model, dataloader, optimizer, lr_multiplier, train = faster(resnet(50), masks=True)
