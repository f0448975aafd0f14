"""What a round puts on the wire, for the runtime: see securemodel.compiler.wire."""

from securemodel.compiler.wire import START, Step, item_bytes, message_bytes, phase_cost, sends, steps

__all__ = ["START", "Step", "item_bytes", "message_bytes", "phase_cost", "sends", "steps"]
