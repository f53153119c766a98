"""The engine file and what runs it: devices, memory arena, executor, sessions."""
