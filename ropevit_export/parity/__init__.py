"""Stage 7: are an artifact's outputs the reference's?"""
