"""The generator's command: python examples/generator/main.py fit --config examples/generator/photographs.yaml"""

from token_generator.cli import main

if __name__ == "__main__":
    main()
