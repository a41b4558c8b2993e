"""The data of the service: mapped tables, the neighbour index and the map."""
