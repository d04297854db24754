"""Backdoors: a scan for them, and what it is measured with.

==================================  ===============================================================
:mod:`~agnosco.backdoor.triggers`   what an attacker lays on images
:mod:`~agnosco.backdoor.train`      compromised networks and their clean twins
:mod:`~agnosco.backdoor.poison`     both in a folder, for ``agnosco poison``
:mod:`~agnosco.backdoor.scan`       is there a class that one fixed pattern reaches too easily?
:mod:`~agnosco.backdoor.verdict`    from scores to an outcome
:mod:`~agnosco.backdoor.evidence`   what is shown beside the scores
:mod:`~agnosco.backdoor.footprint`  how much of a known trigger a map holds
==================================  ===============================================================
"""
