"""A class-conditional generator over the tokens of gsq-lightning, small enough to read in one sitting."""

from token_generator.module import GeneratorModule
from token_generator.network import TokenGenerator, TokenShape
from token_generator.sampling import Sampling, generate

__all__ = ["GeneratorModule", "Sampling", "TokenGenerator", "TokenShape", "generate"]
