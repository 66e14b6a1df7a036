"""`python -m offmarl` is `offmarl`."""

from offmarl.cli import main

main()
