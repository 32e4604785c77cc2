"""Boards: each module makes an edge_agent.interfaces.Board for one kind of machine."""
