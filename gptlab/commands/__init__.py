"""The commands, one module each: functions that compute a result, and `render`, which prints it."""
