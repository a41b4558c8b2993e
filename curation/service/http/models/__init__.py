"""The JSON answers as models: the schemas of the OpenAPI document and the explorer's types.

They describe what the routes send; nothing is built from them at run time. A closed answer
(``base.Answer``) has exactly these members. An open one (``base.OpenAnswer``) has these and the
columns that the store's tables have besides.
"""
