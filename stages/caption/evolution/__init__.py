"""How a picture becomes its edit (Video4Edit)."""
