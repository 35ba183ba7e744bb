"""Fits a line to points by gradient descent."""
import platform
import random
import time

from tqdm import tqdm

EPOCHS = 4

print(f"training with Python {platform.python_version()}", flush=True)
random.seed(1)
points = []
for _ in tqdm(range(200), desc="making points"):
    x = random.uniform(-1, 1)
    points.append((x, 3 * x + 1 + random.gauss(0, 0.1)))
    time.sleep(0.005)

slope = offset = 0.0
for epoch in range(1, EPOCHS + 1):
    errors = [(x, slope * x + offset - y) for x, y in points]
    loss = sum(error * error for _, error in errors) / len(points)
    slope -= 1.2 * sum(x * error for x, error in errors) / len(points)
    offset -= 0.6 * sum(error for _, error in errors) / len(points)
    print(f"epoch {epoch}/{EPOCHS}  loss {loss:.4f}", flush=True)
    time.sleep(0.35)

print(f"trained: y = {slope:.2f} x + {offset:.2f}", flush=True)
