"""`python -m mcr_fast.env`."""

from mcr_fast.env import main

raise SystemExit(main())
