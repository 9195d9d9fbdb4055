"""``python -m kdfm_ray`` is ``kdfm``."""

from kdfm_ray.cli import main

raise SystemExit(main())
