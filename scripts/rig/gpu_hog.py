"""gpu_hog.py SHARE DEVICE SECONDS: keeps one GPU busy for SHARE of the time, with matrix products of about 20 ms in a period of 40 ms."""
import os, sys, time
import torch
share, device, seconds = float(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
torch.cuda.set_device(device)
x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16); y = torch.empty_like(x)
for _ in range(3): torch.mm(x, x, out=y)
torch.cuda.synchronize(); b = time.time()
for _ in range(10): torch.mm(x, x, out=y)
torch.cuda.synchronize(); one = (time.time() - b) / 10
period = 0.04; n = max(1, round(share * period / one))
print(f"{time.time():.3f} one product {one * 1e3:.2f} ms, {n} a turn, share {share}", flush=True)
open(f"/tmp/gpu_hog.{os.getpid()}", "w").close()
end = time.time() + seconds; busy = 0.0; t0 = time.time()
while time.time() < end:
    b = time.time()
    for _ in range(n): torch.mm(x, x, out=y)
    torch.cuda.synchronize(); w = time.time() - b; busy += w
    # with others on the GPU the products take longer: the pause keeps the share of the time that this process asks for work
    if share < 0.99: time.sleep(max(0.0, w / share - w))
