"""Does any step of the broker cost more when there are more workers, more requests that wait, or more clients?"""
