"""Follows an Orthanc: reads its /changes log with a durable cursor and pulls each stable study into the spool, once."""
