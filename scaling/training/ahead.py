"""What a run will need compiled, made while another one trains.

jax keeps what it has traced, lowered and compiled for a jitted function with that function, and `make_program` gives
runs of one shape the same functions. So whoever compiles first does it for all runs of the shape in this process, on
any of its threads.
"""

import jax

from scaling.parallel.mesh import make_mesh
from scaling.runs import Placement, Run
from scaling.training.evaluation import lowered_losses, rows_of
from scaling.training.step import lowered_step, make_program


def compile_ahead(run: Run, placement: Placement) -> None:
    """Compiles the initialisation, the step and the evaluation of a run, as `train` will ask for them.

    Raises what compiling them raises, and InputError for a placement that does not fit.
    """
    program = make_program(run, placement, make_mesh(placement))
    with jax.set_mesh(program.mesh):
        program.init.lower(jax.random.key(run.seed)).compile()
        lowered_step(program, run).compile()
        lowered_losses(program, run, rows_of(run, placement, program)).compile()
