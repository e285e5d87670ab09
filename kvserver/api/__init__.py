"""Door: check the request, call inwards, map the error, fill the header. Knows gRPC."""

import os

# Read when grpc is imported. Its event engine moves every call through one more thread before
# Python sees it; without, a sequential call takes 0.26 instead of 0.42 ms, and 15 % more calls fit.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
