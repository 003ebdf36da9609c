"""`nbd`: a disk behind a Network Block Device server.

Source: the NBD project's doc/proto.md. `address` reads file names and options, `handshake` negotiates an export,
`connection` carries requests, `node` is the driver.
"""
