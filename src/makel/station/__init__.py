"""The inspection station: the record of decisions, and the service, page and line connections around it.

Needs the extra `makel[station]`. Nothing here imports training at module level.
"""
