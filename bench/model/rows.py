"""The rows that the model predicts: those with goals, and the largest sizes of the other ops."""

from bench.gpu.rows import TIMED_ROWS
from bench.gpu.sizes import SIZE_ROWS

OTHERS = ("sup_con L=32768 bfloat16", "nt_xent L=4096 bfloat16", "reconstruction_loss N=32768")
ROWS = (*TIMED_ROWS, *(row for row in SIZE_ROWS if row.label in OTHERS))
