"""Imported where deployed processes are forked from: they wait less long for a site that is dead.

What is tested is that they give such a site up and go on, not after how many seconds.
"""

from fedsight.engines.remote import conversation

conversation.SILENCE = 12.0  # seconds, not 30; a site that lives answers at least every five
