import forks

forks.warm_up()
