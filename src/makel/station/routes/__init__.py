"""The station's HTTP endpoints, one module a subject; each gives a router for a station."""
