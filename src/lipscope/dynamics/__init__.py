"""The training observer: what a network's Lipschitz constant does while it trains, and which force moves it."""
